"""One function a verb: each joins the parts below and returns a record of what it did."""
