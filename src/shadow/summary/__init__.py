"""The rows of a report -> its figures, typed, by module, layer and component. Pure."""
