"""unprompt: a logging gateway for LLM APIs that learns prompts away."""

__version__ = "0.1.0"
