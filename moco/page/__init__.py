"""The report: what runs on disk amount to, and the page and figures about them."""
