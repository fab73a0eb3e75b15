"""The public functions of glassmoe: what `import glassmoe` offers and what the command line runs.

Each function checks its arguments, then imports the room that does the work, so that importing this package and making
a mistake are both quick. A parameter means the same thing, and takes the same values, in every function.
"""
