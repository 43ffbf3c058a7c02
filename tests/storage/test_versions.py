"""The versions recorded with a result are those of the installed packages."""

from importlib.metadata import version

from bliss_jax.storage import package_versions, versions


def test_versions_are_those_of_the_installed_packages():
    found = package_versions()
    assert found["jax"] == version("jax")
    assert found["numpy"] == version("numpy")


def test_an_absent_package_is_reported_as_not_installed(monkeypatch):
    def absent(name):
        raise versions.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", absent)
    found = package_versions()
    assert found["bliss-jax"] == found["tensorflow-datasets"] == "not installed"
    assert found["python"] != "not installed"
