"""Images for people: grounded answers, contact sheets, attention maps."""
