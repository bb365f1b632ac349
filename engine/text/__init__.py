"""Between text and token ids: tokenizers, chat formats, templates."""
