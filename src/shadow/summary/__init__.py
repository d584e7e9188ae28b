"""The rows of a report -> its figures by module, layer and component. Pure."""
