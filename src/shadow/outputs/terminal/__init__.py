"""What was found -> rich renderables, for 80 columns and up. Pure: nothing here prints."""
