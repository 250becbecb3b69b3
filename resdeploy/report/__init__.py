"""Records to documents, and documents to tables, JSON, CSV, Markdown, charts and the formats of CI."""
