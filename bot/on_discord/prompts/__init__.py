"""System prompts on Discord: the command, drafts, the form."""
