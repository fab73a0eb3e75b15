"""Explanations of features: who writes them, who scores them, and how well they predict where features fire."""
