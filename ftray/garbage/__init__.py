"""What a storage root holds, and which of it nobody needs any more."""
