"""An engine that runs somewhere else: asked over HTTP, at one server or at several with the same model."""
