"""From TSV rows to records: reading, batching, answering, going on after a kill."""
