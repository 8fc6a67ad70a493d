"""What `inspect` finds: the report, the summary, findings, scales and codes, experts."""
