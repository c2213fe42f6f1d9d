"""A back door to a store on S3: plain boto3, none of the code under test."""

from urllib.parse import urlsplit

from tests.servers import S3Server


class S3Door:
    """The objects of a store below ``s3://bucket/prefix``, by their paths in the store."""

    def __init__(self, server: S3Server, url: str) -> None:
        parts = urlsplit(url)
        self._client = server.client()
        self._bucket = parts.netloc
        self._start = f"{parts.path.strip('/')}/".lstrip("/")

    def read(self, path: str) -> bytes:
        """Content of an object."""
        found = self._client.get_object(Bucket=self._bucket, Key=self._start + path)
        with found["Body"] as body:
            data: bytes = body.read()
        return data

    def write(self, path: str, data: bytes) -> None:
        """Create an object or replace it."""
        self._client.put_object(Bucket=self._bucket, Key=self._start + path, Body=data)

    def delete(self, path: str) -> None:
        """Delete an object; S3 does not mind if there is none."""
        self._client.delete_object(Bucket=self._bucket, Key=self._start + path)

    def paths(self) -> list[str]:
        """Every object's path, sorted, however many pages they fill."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._start
        )
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return sorted(key.removeprefix(self._start) for key in keys)
