"""Above the pipeline: conversations, batches of questions, the second look."""
