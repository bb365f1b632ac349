"""Where those wait who want an answer: in fair order, until the engine has room."""
