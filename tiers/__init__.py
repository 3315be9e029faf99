"""The promises and who is served when. Everything here decides."""
