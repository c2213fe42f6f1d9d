"""The steps (modules named by verbs) and the things (modules named by nouns) of mixpool."""
