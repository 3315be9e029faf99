"""Callers and their rights."""

import pytest

from daemon.rpc.callers import Caller, Role, Token, caller_of, is_near, tokens_of

A, B = "a" * 16, "b" * 16


def test_a_token_is_a_game_servers_unless_it_says_more() -> None:
    """A plain tenant and a table with only a tenant mean the same; a table may name the role."""
    tokens = tokens_of(
        f'{A} = "studio-a"\n"{B}" = {{ tenant = "studio-b", role = "operator" }}\n'
        f'["{"c" * 16}"]\ntenant = "studio-c"\n["{"d" * 16}"]\ntenant = "studio-d"\nrole = "game"\n'
    )
    assert tokens == {
        A: Token("studio-a"),
        B: Token("studio-b", Role.OPERATOR),
        "c" * 16: Token("studio-c"),
        "d" * 16: Token("studio-d", Role.GAME),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has no tokens"),
        ('"short" = "x"', "16 characters or more"),
        (f"{A} = 5", "must be a tenant, or a table"),
        (f"{A} = ['x']", "must be a tenant, or a table"),
        (f"{A} = {{ role = 'operator' }}", "has no tenant"),
        (f"{A} = {{ tenant = 5 }}", "has no tenant"),
        (f"{A} = {{ tenant = 'x', role = 'Operator' }}", "has the role 'Operator', must be game or operator"),
        (f"{A} = {{ tenant = 'x', role = ['operator'] }}", "must be game or operator"),
        (f"{A} = {{ tenant = 'x', rolle = 'operator' }}", "unknown key 'rolle'; there are: role, tenant"),
        (f'{A} = "{"x" * 65}"', "at most 64 bytes"),
        (f'{A} = "a\\nb"', "the tenant has U\\+000A"),
        ("[", "Invalid"),
    ],
)
def test_a_wrong_tokens_file_says_what_is_wrong_and_never_a_token(text: str, said: str) -> None:
    """A file with an unknown entry gives no caller a right: it is refused as a whole."""
    with pytest.raises(ValueError, match=said) as caught:
        tokens_of(text)
    assert A not in str(caught.value)


@pytest.mark.parametrize(
    ("peer", "near"),
    [
        ("unix:", True),
        ("unix:/run/npcd/npcd.sock", True),
        ("unix:%00abstract", True),
        ("ipv4:127.0.0.1:4711", True),
        ("ipv4:127.8.9.10:4711", True),
        ("ipv6:%5B::1%5D:4711", True),
        ("ipv6:[::1]:4711", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:4711", True),
        ("ipv4:10.0.0.7:4711", False),
        ("ipv4:0.0.0.0:4711", False),
        ("ipv6:%5B::ffff:10.0.0.7%5D:4711", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", False),
        ("ipv6:%5B2001:db8::1%5D:4711", False),
        ("vsock:2:4711", False),
        ("ipv4:localhost:4711", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_callers_on_this_machine_are_near(peer: str, near: bool) -> None:
    """Loopback in each of its forms, and Unix sockets, are near. Everything else is far, also addresses that are not
    understood."""
    assert is_near(peer) is near


@pytest.mark.parametrize("key", ["x-forwarded-for", "X-Forwarded-For", "forwarded", "via", "x-real-ip"])
def test_a_call_through_a_proxy_is_not_near(key: str) -> None:
    """The proxy is on this machine, and its caller may be anywhere."""
    assert not is_near("ipv4:127.0.0.1:4711", ["user-agent", key])
    assert not is_near("ipv4:10.0.0.7:4711", [key]), "and no header makes anybody near"


def test_rights_are_those_of_token_and_place() -> None:
    """Draining needs an operator or this machine. The counts of all tenants need an operator, or a daemon with one
    tenant."""
    assert caller_of(None, is_near=True) == Caller("", sees_all=True, may_drain=True)
    assert caller_of(None, is_near=False) == Caller("", sees_all=True, may_drain=False)
    assert caller_of(Token("a"), is_near=True) == Caller("a", sees_all=False, may_drain=True)
    assert caller_of(Token("a"), is_near=False) == Caller("a", sees_all=False, may_drain=False)
    assert caller_of(Token("a", Role.OPERATOR), is_near=False) == Caller("a", sees_all=True, may_drain=True)
