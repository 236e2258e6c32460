"""Other projects' autoscalers as policies in virtual time: documented rules, documented defaults."""
