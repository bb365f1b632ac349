"""The engine over HTTP, as OpenAI's API and as what bots on other machines need; without a web server."""
