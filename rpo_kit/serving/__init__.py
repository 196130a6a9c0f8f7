"""What one takes home: the personalizer behind an OpenAI-compatible endpoint."""
