"""Other protocols, and streams of lines, over the one pipeline. Each module reads one shape and answers in it."""
