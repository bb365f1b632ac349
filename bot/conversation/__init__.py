"""A conversation with the model: what is asked, who is answered when, what is remembered. No Discord."""
