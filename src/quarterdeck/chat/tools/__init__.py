"""What a tool is: Python functions, JSON Schema, Cohere's parameter definitions, and the check of arguments."""
