"""Serving: requests, engines that answer them, and the pipeline that an app builds on both."""
