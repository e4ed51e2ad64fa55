"""What a run came to, for people: one self-contained page, and the same facts in a terminal."""
