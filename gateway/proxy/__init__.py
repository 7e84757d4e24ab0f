"""The online wing: client -> server -> router -> forward -> upstream, and the capture of what passed."""
