# The machines with GPUs, in their ordinary shape: each run says only what is different in it.

mock_provider "google" {}

variables {
  project        = "a-project"
  region         = "europe-west4"
  zones          = 4
  worker_version = "0.1.0-1234567"
  name           = "darkroom-worker"
  subnetwork     = "workers"
  account        = "worker@p"
  image          = "hub/darkroom/darkroom-worker"
  queue          = "gen.sdxl"
  secret_prefix  = "darkroom"
  storage_url    = "gs://pictures"
  result_ttl     = 604800
  gpus           = 2
  machines       = { min = 2, max = 8 }
}

run "the_workers" {
  command = apply
  module { source = "../gpu_worker" }

  assert {
    condition     = length(one(google_compute_region_instance_template.this.network_interface).access_config) == 0
    error_message = "A worker has no public address."
  }
  assert {
    condition     = strcontains(google_compute_region_instance_template.this.metadata["user-data"], "darkroom-worker@1.service")
    error_message = "Each GPU has a worker."
  }
  assert {
    condition     = alltrue([for file in yamldecode(google_compute_region_instance_template.this.metadata["user-data"]).write_files : file.content != null])
    error_message = "A file without a line is an empty text: at another cloud-init stops."
  }
  assert {
    condition     = one(google_compute_region_instance_group_manager.this.all_instances_config).metadata["darkroom-version"] == "0.1.0-1234567"
    error_message = "A new machine begins with the version it was told."
  }
  assert {
    condition     = output.health_port == 9100
    error_message = "A worker that is drained is no reason to delete its machine."
  }
  assert {
    condition     = google_compute_region_instance_template.this.metadata["enable-guest-attributes"] == "TRUE"
    error_message = "A machine tells by which keys it is known."
  }
  assert {
    condition     = strcontains(google_compute_region_instance_template.this.metadata["user-data"], "/usr/local/bin/darkroom-pull")
    error_message = "A machine must be able to bring its image."
  }
  assert {
    condition     = one(google_compute_region_instance_group_manager.this.update_policy).max_unavailable_fixed == 4
    error_message = "Google wants at least one machine a zone."
  }
  assert {
    condition     = one(one(google_compute_region_autoscaler.this.autoscaling_policy).metric).single_instance_assignment == 8
    error_message = "Four jobs for each GPU."
  }
  assert {
    condition     = one(google_compute_region_instance_template.this.scheduling).on_host_maintenance == "TERMINATE"
    error_message = "A machine with a GPU cannot be moved."
  }
}

run "workers_of_a_later_apply" {
  command = apply
  module { source = "../gpu_worker" }
  variables {
    worker_version = "0.0.9-7654321"
  }

  assert {
    condition     = !strcontains(one(google_compute_region_instance_group_manager.this.all_instances_config).metadata["darkroom-version"], "7654321")
    error_message = "An apply takes no deployment back."
  }
}

run "workers_whose_logs_are_sent" {
  command = apply
  module { source = "../gpu_worker" }
  variables {
    elasticsearch = "https://elasticsearch.internal:9200"
  }

  assert {
    condition     = strcontains(google_compute_region_instance_template.this.metadata["user-data"], "/usr/local/bin/darkroom-filebeat")
    error_message = "Filebeat's unit needs the script that fetches its key."
  }
  assert {
    condition     = !strcontains(google_compute_region_instance_template.this.metadata["user-data"], "darkroom-collector.service")
    error_message = "Nobody wanted traces."
  }
}

run "workers_that_are_told_what_the_web_tier_is" {
  command = apply
  module { source = "../gpu_worker" }
  variables {
    settings  = { UPLOAD_MAX_BYTES = "50000000" }
    catalogue = "models: [mine]"
    hub_token = true
  }

  assert {
    condition = strcontains(google_compute_region_instance_template.this.metadata["user-data"],
    base64encode("MODELS_FILE=/etc/darkroom/catalogue/models.yaml\nUPLOAD_MAX_BYTES=50000000\n"))
    error_message = "Settings of one's own reach the workers, and the place of the catalogue with them."
  }
  assert {
    condition     = strcontains(google_compute_region_instance_template.this.metadata["user-data"], base64encode("models: [mine]"))
    error_message = "Web tier and workers read the same catalogue."
  }
}

run "workers_that_do_not_say_when_they_are_ready" {
  command = plan
  module { source = "../gpu_worker" }
  variables {
    settings = { LOG_LEVEL = "WARNING" }
  }
  expect_failures = [var.settings]
}

run "workers_whose_settings_hold_a_secret" {
  command = plan
  module { source = "../gpu_worker" }
  variables {
    settings = { HF_TOKEN = "hf_1" }
  }
  expect_failures = [var.settings]
}

run "workers_without_a_version" {
  command = plan
  module { source = "../gpu_worker" }
  variables {
    image          = "hub/darkroom/darkroom-worker:latest"
    worker_version = "latest"
    storage_url    = "file:///pictures"
    gpus           = 3
    machines       = { min = 0, max = 8 }
  }
  expect_failures = [var.image, var.worker_version, var.storage_url, var.gpus, var.machines]
}
