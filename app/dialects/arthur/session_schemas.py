"""Logins and who is logged in."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pydantic import BaseModel, Field

from app.dependencies import Caller
from app.wire import Wire

ISSUER = "whence"


class LoginBody(Wire):
    login: str = Field(description="Name of an API key.", examples=["analyst"])
    password: str = Field(description="Its secret.", examples=["whence_u1Zr8yX0c"])


class LoginResponse(BaseModel):
    id: UUID = Field(description="Id of the API key.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
    email: str = Field(description="Empty: keys have none.", examples=[""])


class AuthInfoResponse(BaseModel):
    issuer: str = Field(description="`whence`.", examples=[ISSUER])
    username: str = Field(description="Name of the API key.", examples=["analyst"])
    first_name: str = Field(description="Empty: keys have none.", examples=[""])
    last_name: str = Field(description="Empty: keys have none.", examples=[""])
    email: str = Field(description="Empty: keys have none.", examples=[""])
    roles: list[str] = Field(description="Scopes of the key.", examples=[["read", "ingest"]])
    organization_ids: list[str] = Field(description="One: the tenant of the key.", examples=[["default"]])


class OrganizationResponse(BaseModel):
    organization_id: str = Field(description="The tenant of the key.", examples=["default"])


class CurrentOrganization(BaseModel):
    id: str = Field(description="The tenant of the key.", examples=["default"])


class OrganizationChoice(Wire):
    organization_id: str = Field(description="The tenant of the key; no other can be chosen.", examples=["default"])


def auth_info(caller: Caller) -> dict[str, Any]:
    names = dict.fromkeys(("first_name", "last_name", "email"), "")
    roles = {"roles": sorted(caller.scopes), "organization_ids": [caller.tenant]}
    return {"issuer": ISSUER, "username": caller.name} | names | roles
