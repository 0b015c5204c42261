"""From labelled texts to a published head version."""
