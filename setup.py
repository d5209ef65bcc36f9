"Everything about the package is in settings.ini; this only hands it to setuptools."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

ini = ConfigParser(delimiters=["="])
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
extra = {name.removesuffix("_requirements").replace("_", "-"): cfg[name].split()
         for name in cfg if name.endswith("_requirements")}

# A page of the package index has no files beside it, so that links and the picture get whole addresses.
blob, raw = f"{cfg['git_url']}/blob/main/", cfg["git_url"].replace("//github.com", "//raw.githubusercontent.com") + "/main/"
readme = Path("README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^\]]*\]\()(?!https?:|#)", rf"\1{raw}", readme)
readme = re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{blob}", readme)

# The top-level data/ folder is the package psr_nb.data in the wheel, with the tutorials in it.
modules = {str(p.parent).replace("/", "."): str(p.parent) for p in sorted(Path("psr_nb").rglob("__init__.py"))}
folders = ["data"] + [str(p) for p in Path("data").rglob("*") if p.is_dir()]
packages = modules | {"psr_nb." + f.replace("/", "."): f for f in folders}
beside = [str(p) for p in Path("nbs/tutorials").rglob("*") if p.is_dir() and not p.name.startswith((".", "_"))]
packages |= {"psr_nb.data." + f.removeprefix("nbs/").replace("/", "."): f for f in ["nbs/tutorials", *beside]}

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"],
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"], license="Apache-2.0",
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": cfg["git_url"],
        "Changelog": f"{blob}CHANGELOG.md", "Issues": f"{cfg['git_url']}/issues",
        "Paper": "https://arxiv.org/abs/2503.03746",
    },
    long_description=readme, long_description_content_type="text/markdown",
    python_requires=f">={cfg['min_python']}", install_requires=cfg["requirements"].split(), extras_require=extra,
    packages=list(packages), package_dir=packages,
    package_data={"psr_nb": ["py.typed"]} | {name: ["*"] for name in packages if ".data" in name},
    entry_points={"console_scripts": cfg["console_scripts"].split("\n"),
                  "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Developers",
                 "Intended Audience :: Science/Research", "License :: OSI Approved :: Apache Software License",
                 "Framework :: Jupyter", "Framework :: Jupyter :: JupyterLab", "Typing :: Typed",
                 "Operating System :: POSIX :: Linux", "Topic :: Scientific/Engineering :: Artificial Intelligence",
                 "Programming Language :: Python :: 3.11", "Programming Language :: Python :: 3.12",
                 "Programming Language :: Python :: 3.13"],
    zip_safe=False,
)
