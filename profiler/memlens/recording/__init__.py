"""What runs inside the job: the session, and what carries events, tags and marks to disk."""
