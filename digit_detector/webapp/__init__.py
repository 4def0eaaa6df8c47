"""The web application: a page that hears digits, the same by HTTP and WebSocket. Needs the [web] extra."""
