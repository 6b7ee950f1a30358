"""A FreeSWITCH that is not there: speaks ESL as the real one does, for demo, tests and users' own tests."""
