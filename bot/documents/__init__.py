"""What the bytes of a file say, whatever its name; no Discord."""
