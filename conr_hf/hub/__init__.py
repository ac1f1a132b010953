"""Model cards, and what is sent to the Hub."""
