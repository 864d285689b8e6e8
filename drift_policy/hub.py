"""Policies to the Hugging Face Hub, with a model card; `load_policy("hf://owner/name")` brings them back."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from drift_policy.errors import CheckpointError
from drift_policy.model_card import model_card, read_manifest
from drift_policy.serialization import save_policy

if TYPE_CHECKING:
    from drift_policy.policy import Policy


def push_policy(policy: "Policy", repo_id: str, *, run: str | Path | None = None, private: bool = False) -> str:
    """Upload a policy with its model card and return the address of the commit; see `Policy.push_to_hub`.

    Raises:
        CheckpointError: huggingface_hub is missing, the policy has no normaliser or a mirror that was never fitted, the
            manifest is of another policy, or the Hub refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise CheckpointError("The Hugging Face Hub needs huggingface_hub: pip install 'drift-policy[hub]'.") from error
    if not policy.normalizer.is_fitted:
        raise CheckpointError("The policy has no normaliser yet, so nobody could use it: train it first.")
    if policy.mirror is not None:
        policy.mirror.require_fitted()
    try:
        card = model_card(policy, repo_id, None if run is None else read_manifest(run, policy))
    except KeyError as error:
        raise CheckpointError(f"The manifest of {run} lacks {error}: evaluate the policy again.") from error
    with TemporaryDirectory() as folder:
        save_policy(policy, folder)
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        try:
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload policy")
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(
                f"{repo_id} could not be uploaded to the Hugging Face Hub: {error} Log in with a token that may write "
                "(hf auth login), and give the name as owner/name."
            ) from error
    return str(commit.commit_url)
