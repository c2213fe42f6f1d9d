"""What mixpool computes, in rooms: documents, tokens, models, losses, rankings, reports."""
