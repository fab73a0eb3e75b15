"""What language models say of features: asked through any OpenAI-compatible endpoint."""
