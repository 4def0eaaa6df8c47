"""The web application: page, HTTP API and WebSocket. Needs the [web] extra."""
