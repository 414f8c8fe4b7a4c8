"""The cluster's API: thin services that check a request, commit what it asks for, and leave the rest to the controllers."""
