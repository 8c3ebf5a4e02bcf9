"""What `launch.plan` is made of: shapes -> compiled programs -> bytes, collectives, seconds, and what to change."""
