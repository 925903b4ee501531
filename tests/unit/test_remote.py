"""Addresses on other machines: what of them is a name, and what is a secret."""

from __future__ import annotations

import pytest

from pfscale.remote import base_name, without_secrets


@pytest.mark.parametrize(
    ("address", "name", "shown"),
    [
        ("/data/a b#1.root", "a b#1.root", "/data/a b#1.root"),
        ("https://me:word@host/x/f.root?X-Amz-Signature=AAA#top", "f.root", "https://host/x/f.root"),
        ("root://eos//store/f.root?authz=Bearer%20SECRET", "f.root", "root://eos//store/f.root"),
        ("s3://bucket/run?1/a#1.root", "a#1.root", "s3://bucket/run?1/a#1.root"),
        ("s3://bucket/folder/", "folder", "s3://bucket/folder/"),
    ],
)
def test_names_hold_no_secrets(address: str, name: str, shown: str) -> None:
    """Catches tokens in manifests and messages, and an event's identity that changes with every new signature."""
    assert base_name(address) == name
    assert without_secrets(address) == shown
