# Set-up, tests and the main job. Each target does all of its own set-up and is fast when that is done.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
FONTS := fonts-liberation fonts-open-sans fonts-roboto-unhinted fonts-lato fonts-noto-core fonts-freefont-ttf \
	fonts-croscore fonts-crosextra-carlito fonts-crosextra-caladea fonts-urw-base35 fonts-linuxlibertine fonts-ebgaramond \
	fonts-sil-gentium-basic fonts-sil-charis fonts-sil-andika fonts-b612 fonts-cantarell fonts-cabin fonts-clear-sans \
	fonts-inter fonts-karla fonts-manrope fonts-sora fonts-quicksand fonts-comfortaa fonts-dosis fonts-play fonts-jura \
	fonts-junction fonts-oxygen fonts-paratype fonts-go fonts-adf-gillius fonts-adf-switzera fonts-adf-universalis \
	fonts-adf-libris fonts-adf-baskervald fonts-adf-accanthis fonts-adf-romande fonts-oldstandard fonts-quattrocento \
	fonts-vollkorn fonts-yrsa-rasa fonts-elstob fonts-junicode fonts-gfs-didot fonts-gfs-artemisia fonts-cardo \
	fonts-fanwood fonts-cmu fonts-hack fonts-firacode fonts-jetbrains-mono fonts-inconsolata fonts-averia-sans-gwf \
	fonts-averia-serif-gwf fonts-yanone-kaffeesatz fonts-comic-neue fonts-tuffy fonts-roboto-slab fonts-adf-berenis \
	fonts-adf-ikarius fonts-adf-irianis fonts-adf-mekanus fonts-adf-tribun fonts-arapey fonts-dustin fonts-gemunu-libre \
	fonts-georgewilliams fonts-gfs-neohellenic fonts-goudybookletter fonts-hosny-amiri fonts-league-mono \
	fonts-league-spartan fonts-lmodern fonts-mononoki fonts-morisawa-bizud-gothic fonts-morisawa-bizud-mincho fonts-mplus \
	fonts-nanum fonts-noto-mono fonts-prociono fonts-routed-gothic fonts-sawarabi-gothic fonts-sil-abyssinica \
	fonts-sil-akatab fonts-smc-gayathri fonts-smc-manjari fonts-tiresias fonts-tlwg-garuda-otf fonts-tlwg-laksaman-otf \
	fonts-tlwg-loma-otf
# Small models on few cores: threads that wait by spinning cost more than they give.
export OMP_WAIT_POLICY ?= passive

.PHONY: run test test-slow test-full lint demo bench train-default clean

run: $(VENV)/.run
	$(BIN)/python examples/run.py

test: $(VENV)/.test lint
	$(PYTEST) -m "not slow and not full"

test-slow: $(VENV)/.test
	$(PYTEST) -m "slow and not full" $(ARGS)

test-full: $(VENV)/.test lint
	@date -u
	$(PYTEST)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

demo: $(VENV)/.demo
	$(BIN)/python app.py

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

train-default: $(VENV)/.train
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 -m vlm.training.reader --out runs/reader \
		$(if $(REAL),--real $(REAL)) $(if $(PRINT),--print $(PRINT))

clean:
	rm -rf $(VENV)

$(VENV)/.run: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; set PYTHON=..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@# The report is looked at in a real browser; without one those tests say "not run: chromium".
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; then \
		(apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core) >/dev/null || true; \
	fi
	touch $@

$(VENV)/.demo: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo]"
	touch $@

$(VENV)/.train: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[train]"
	@# The more typefaces, the better it reads those it never saw. Without them it draws with matplotlib's.
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		(apt-get update -qq && apt-get install -y -qq --no-install-recommends $(FONTS)) >/dev/null || true; \
	fi
	touch $@
