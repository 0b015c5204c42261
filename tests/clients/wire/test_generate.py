from clients.wire import generate


def test_the_stubs_are_what_their_protos_say():
    assert generate.drifted() == []


def test_a_stub_that_drifted_is_named(monkeypatch, capsys):
    def altered(out):
        real(out)
        stub = out / "clients/wire/embedding_pb2.pyi"
        stub.write_text(stub.read_text() + "# by hand\n")

    real = generate.generate
    monkeypatch.setattr(generate, "generate", altered)
    monkeypatch.setattr("sys.argv", ["generate", "--check"])
    assert generate.main() == 1
    assert capsys.readouterr().out.startswith("clients/wire/embedding_pb2.pyi is not what its .proto says")
