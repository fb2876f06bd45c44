"""One page that shows a run by itself: the plugin's pages with the data in them."""

__all__: list[str] = []
