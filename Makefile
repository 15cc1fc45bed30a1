# Two commands do all set-up on a fresh Debian or Ubuntu machine with Rust: `make demo` and `make test`.

LAB = tests/lab/lab
CARGO = cargo

.PHONY: help demo test check fresh faults bench lab clean-lab

help: ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

demo: ## install packages, build, start a lab; clone, provision and join one node
	@tests/lab/demo

test: ## everything: formatting, lints, fast tests, then the lab's tests
	@tests/lab/test

check: ## everything that needs no lab: formatting, lints, fast tests
	@tests/lab/packages
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	shellcheck tests/lab/lab tests/lab/demo tests/lab/test tests/lab/packages tests/lab/bench tests/lab/faults tests/lab/binary tests/lab/fresh tests/lab/fresh_inside tests/lab/*.sh \
		images/*.sh images/tiny/init images/tiny/rc images/tiny/stop images/tiny/power tests/faults/preload/build templates/first-boot/firstboot.sh templates/steps/run-step.sh .ci/run
	$(CARGO) test --locked

fresh: ## a newcomer's first commands, in clean roots of two Debian releases
	@tests/lab/fresh

faults: ## try every fault at every place, for hours; writes docs/faults.md
	@tests/lab/faults

bench: ## measure speed, as ratios within one run
	@tests/lab/bench

lab: ## start the lab and keep it: see tests/lab/lab
	@$(LAB) up

clean-lab: ## stop the lab and remove everything it created, its cache included
	@NODEGRAFT_LAB_NAME=nodegraft-test $(LAB) down
	@NODEGRAFT_LAB_NAME=nodegraft-faults $(LAB) down
	@$(LAB) clean
