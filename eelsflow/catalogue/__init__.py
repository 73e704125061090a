"""New acquisitions: what is in the inboxes, what became of each file, and the service that makes it so."""
