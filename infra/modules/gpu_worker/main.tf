# Machines with GPUs, made alike by a template, healed and scaled by their group. Deployments come over SSH and change
# the version only (files/darkroom-deploy). They tell the group, and a machine that is made later begins with that version.

locals {
  units = concat(
    [for gpu in range(var.gpus) : "darkroom-worker@${gpu}.service"],
    [for name in keys(local.helpers) : "darkroom-${name}.service"],
  )
  wanted  = { node-exporter = true, dcgm = true, collector = var.traces != "", filebeat = var.elasticsearch != "" }
  helpers = { for name, image in var.helper_images : name => image if local.wanted[name] }
  environment = merge({
    IMAGE         = var.image
    GPUS          = var.gpus
    SECRET_PREFIX = var.secret_prefix
    STORAGE_URL   = var.storage_url
    RESULT_TTL    = var.result_ttl
    WORKER_QUEUE  = var.queue
    WORKER_GRACE  = var.grace
    # The grace, and time to hand the job back.
    STOP_SECONDS      = var.grace + 30
    MODELS_FETCH      = "true"
    MODEL_MEMORY      = var.model_memory
    WORKER_MAX_MEMORY = var.worker_max_memory
    HUB_TOKEN         = var.hub_token ? "true" : ""
    }, var.traces == "" ? {} : {
    OTEL_EXPORTER_OTLP_ENDPOINT = "http://172.17.0.1:4318"
    JAEGER_ENDPOINT             = var.traces
    JAEGER_INSECURE             = "true"
    }, var.elasticsearch == "" ? {} : {
    ELASTICSEARCH_URL = var.elasticsearch
    IN_CLUSTER        = "false"
    ON_GPU_VM         = "true"
  }, { for name, image in local.helpers : "${upper(replace(name, "-", "_"))}_IMAGE" => image })

  scripts = { for name in concat(["darkroom-worker", "darkroom-deploy", "darkroom-pull"], var.elasticsearch == "" ? [] : ["darkroom-filebeat"]) :
  "/usr/local/bin/${name}" => { mode = "0755", content = file("${path.module}/files/${name}") } }
  unit_files = { for name in concat(["worker@"], keys(local.helpers)) :
  "/etc/systemd/system/darkroom-${name}.service" => { mode = "0644", content = file("${path.module}/files/darkroom-${name}.service") } }
  # The same as in the cluster.
  configs = { for name, place in { "collector.yaml" = "traces/collector.yaml", "filebeat.yml" = "logs/filebeat.yml" } :
  "/etc/darkroom/${name}" => { mode = "0644", content = file("${path.module}/../../../charts/observability/files/${place}") } }
  # What is as well for the web tier; beside it, what a worker is told by worker.env counts.
  settings = merge(var.settings, var.catalogue == "" ? {} : { MODELS_FILE = "/etc/darkroom/catalogue/models.yaml" })
  own = merge({ for name, values in { worker = local.environment, settings = local.settings } :
    "/etc/darkroom/${name}.env" => { mode = "0644", content = join("", [for key, value in values : "${key}=${value}\n"]) } },
    var.catalogue == "" ? {} : { "/etc/darkroom/catalogue/models.yaml" = { mode = "0644", content = var.catalogue } },
  )
}

resource "google_compute_region_instance_template" "this" {
  name_prefix  = "${var.name}-"
  region       = var.region
  machine_type = var.machine_type
  tags         = ["darkroom-worker"]
  labels       = { role = "darkroom-worker", queue = replace(var.queue, ".", "-") }

  disk {
    source_image = var.boot_image
    boot         = true
    disk_type    = "pd-balanced"
    disk_size_gb = var.disk_gb
  }
  guest_accelerator {
    type  = var.gpu_type
    count = var.gpus
  }
  # What a machine with a GPU must be told: it cannot move while it runs.
  scheduling {
    on_host_maintenance         = "TERMINATE"
    automatic_restart           = !var.spot
    preemptible                 = var.spot
    provisioning_model          = var.spot ? "SPOT" : "STANDARD"
    instance_termination_action = var.spot ? "STOP" : null
  }
  # No access_config: no public address.
  network_interface {
    subnetwork = var.subnetwork
  }
  service_account {
    email  = var.account
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
  }
  shielded_instance_config {
    enable_secure_boot          = var.secure_boot
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }
  metadata = {
    enable-oslogin         = "TRUE"
    block-project-ssh-keys = "TRUE"
    # Where a machine tells the keys by which it is known.
    enable-guest-attributes = "TRUE"
    user-data = templatefile("${path.module}/cloud-init.yaml.tftpl", {
      files = merge(local.scripts, local.unit_files, local.configs, local.own)
      units = local.units
    })
  }
  lifecycle {
    create_before_destroy = true
  }
}

resource "google_compute_health_check" "this" {
  name                = "${var.name}-alive"
  check_interval_sec  = 30
  timeout_sec         = 10
  healthy_threshold   = 1
  unhealthy_threshold = 5

  # The machine's own word (node-exporter), not a worker's: one that is drained, or waits for its secrets, is no reason to
  # delete a machine with all its workers. Those are started again by systemd, and alerts tell of what that cannot mend.
  http_health_check {
    port         = 9100
    request_path = "/metrics"
  }
}

resource "google_compute_region_instance_group_manager" "this" {
  name               = var.name
  region             = var.region
  base_instance_name = var.name

  version {
    instance_template = google_compute_region_instance_template.this.self_link
  }
  auto_healing_policies {
    health_check = google_compute_health_check.this.id
    # Docker and its first image come first.
    initial_delay_sec = var.first_start_seconds
  }
  # A new template is for new machines; those at work are changed by a deployment.
  update_policy {
    type            = "OPPORTUNISTIC"
    minimal_action  = "REPLACE"
    max_surge_fixed = 0
    # Google wants none, or at least one a zone.
    max_unavailable_fixed = var.zones
  }
  # What a new machine begins with. Deployments change it (infra/ci/deploy-worker), and no later apply takes that back.
  all_instances_config {
    metadata = { darkroom-version = var.worker_version }
  }
  lifecycle {
    ignore_changes = [target_size, all_instances_config]
  }
}

resource "google_compute_region_autoscaler" "this" {
  name   = var.name
  region = var.region
  target = google_compute_region_instance_group_manager.this.id

  autoscaling_policy {
    min_replicas    = var.machines.min
    max_replicas    = var.machines.max
    cooldown_period = var.first_start_seconds

    # Jobs of this queue, waiting or running, for each machine.
    metric {
      name                       = var.queue_metric
      filter                     = "resource.type = \"prometheus_target\" AND metric.labels.queue = \"${var.queue}\""
      single_instance_assignment = var.jobs_per_gpu * var.gpus
    }
    scale_in_control {
      time_window_sec = 1800
      max_scaled_in_replicas {
        fixed = 1
      }
    }
  }
}
